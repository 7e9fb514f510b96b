"""slam.relocalization"""
