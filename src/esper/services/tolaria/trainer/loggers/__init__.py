"""Where metrics and growth events go: a file of the run always, TensorBoard, W&B and MLflow by name."""
