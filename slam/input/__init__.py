"""slam.input"""
