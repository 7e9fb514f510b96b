"""slam.viz"""
