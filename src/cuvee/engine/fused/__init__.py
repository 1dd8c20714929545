"""The fast path: expressions that the compiled machine can run, run without torch. Bytes equal the generic path's."""
