"""`python -m tests.bench`: measures Kumulus against its goals and against baselines in the same run.

Real parts throughout: kube-apiserver and etcd with an audit log, the controllers and the agents as the
processes that people run, libvirt and QEMU. Only the simulated hosts' hypervisor is not real. Nothing here
is collected by pytest, and no test asserts a time; the bookkeeping is tested in tests/unit/bench.
"""
