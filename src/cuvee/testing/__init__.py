"""Contract suites that outside packages may run against their own methods, sources and sinks."""
