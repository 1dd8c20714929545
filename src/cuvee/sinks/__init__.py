"""Where tensors go: a layout fixed beforehand, writes in any order, one commit that makes them visible."""
