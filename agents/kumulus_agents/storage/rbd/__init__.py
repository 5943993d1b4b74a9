"""The driver `rbd`: pools of Ceph clusters."""
