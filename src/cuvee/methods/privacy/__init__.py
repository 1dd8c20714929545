"""Protection of models and of the data behind them: secrets and head transformations, privacy accounting."""
