"""Names of work orders, and of the Secrets beside them, in a host's namespace: made of uids, never of a user's text."""

from __future__ import annotations

CERTIFICATE_ORDER = "certificate"
"""Name of the work order that gives an agent its certificate."""

FENCE_ORDER = "0-fence"
"""Name of the work order that says that a host is being fenced. It sorts before all others, so it is read first."""

WATCHDOG_ORDER = "watchdog"
"""Name of the work order that has a host's watchdog armed."""


def instance_order_name(vm_uid: str) -> str:
    """Name of the work order of a machine."""
    return f"instance-{vm_uid}"


def image_order_name(image_uid: str, pool_uid: str) -> str:
    """Name of the work order that keeps an image in a pool: one an image and pool on each host."""
    return f"image-{image_uid[:8]}-{image_uid[-12:]}-{pool_uid[:8]}-{pool_uid[-12:]}"


def pull_secret_name(image_uid: str, pool_uid: str) -> str:
    """Name of the Secret in a host's namespace with which an image is fetched into a pool."""
    return image_order_name(image_uid, pool_uid).replace("image-", "pull-", 1)


def volume_order_name(volume_uid: str) -> str:
    """Name of the work order that keeps a volume on a host."""
    return f"volume-{volume_uid}"


def luks_secret_name(volume_uid: str) -> str:
    """Name of the Secret in a host's namespace with the passphrase of a volume."""
    return f"luks-{volume_uid}"


def snapshot_order_name(snapshot_uid: str) -> str:
    """Name of the work order that keeps a snapshot: of a VolumeSnapshot or of a VirtualMachineSnapshot."""
    return f"snapshot-{snapshot_uid}"


def upload_order_name(upload_uid: str) -> str:
    """Name of the work order of an upload."""
    return f"upload-{upload_uid}"


def console_order_name(request_uid: str) -> str:
    """Name of the work order that answers a console request."""
    return f"console-{request_uid}"


def segment_order_name(network_uid: str) -> str:
    """Name of the work order of a network's presence on a host."""
    return f"segment-{network_uid}"


def gateway_order_name(gateway_uid: str) -> str:
    """Name of the work order of a router or load balancer on a host."""
    return f"gateway-{gateway_uid}"


def pool_order_name(pool_uid: str) -> str:
    """Name of the work order of a pool's presence on a host."""
    return f"pool-{pool_uid}"


def pool_secret_name(pool_uid: str) -> str:
    """Name of the copy, in a host's namespace, of the Secret that a pool's parameters name."""
    return f"pool-{pool_uid}"


def witness_order_name(host_uid: str) -> str:
    """Name of the work order by which a host looks whether another one, of that uid, is alive."""
    return f"witness-{host_uid}"
