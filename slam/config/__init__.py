"""slam.config.schema"""
