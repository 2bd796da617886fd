"""Event-time counting and the detection of surges: pure code, the same live and in back-tests."""
