"""slam.evaluation"""
