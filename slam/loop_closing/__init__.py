"""slam.loop_closing"""
