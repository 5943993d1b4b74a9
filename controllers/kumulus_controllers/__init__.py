"""Orchestration: intent into work orders, facts into status. Touches no machine."""
