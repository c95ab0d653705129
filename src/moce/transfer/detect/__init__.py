"""Object detection and instance segmentation: Mask R-CNN on any encoder that gives a map of its patches."""
