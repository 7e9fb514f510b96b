"""slam.tracking"""
