"""slam.map"""
