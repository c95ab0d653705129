"""Semantic segmentation: UperNet on any encoder that gives maps of its patches."""
