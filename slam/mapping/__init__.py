"""slam.mapping.mapper"""
