"""Track V, vision: a schooled EfficientNet-Lite0 fine-tuned on eight picture tasks, with frozen heads."""
