"""slam.sessions"""
