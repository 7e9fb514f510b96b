"""relocalizer.maps"""
