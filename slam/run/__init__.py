"""slam.run"""
