"""Tests of Kumulus. Contract suites in `tests.contract` are for drivers of third parties too."""
