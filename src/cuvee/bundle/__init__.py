"""What travels with weights: tokenizer, chat template, configuration, side files, licence, card, manifest."""
