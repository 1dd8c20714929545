"""The referee of merging: tasks with sealed test data, everything spent counted, scores with their uncertainty."""
