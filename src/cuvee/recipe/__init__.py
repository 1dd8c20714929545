"""What the user wrote: YAML with positions, two front doors (Cuvée's own and MergeKit's), one model behind them."""
