"""relocalizer.predictors"""
