"""Track T, text understanding: all-MiniLM-L6-v2 fine-tuned on eight classification tasks, with frozen heads."""
