"""What turns reconcilers into a process: queue and workers, kopf, modules, settings, logs, metrics, health."""
