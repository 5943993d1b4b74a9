"""The driver `lvm`: thin pools of LVM volume groups, one on each host."""
