"""Named methods: chains of stages with their defaults, as data. The registry finds every module here."""
