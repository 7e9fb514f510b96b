"""slam.bench.cost"""
