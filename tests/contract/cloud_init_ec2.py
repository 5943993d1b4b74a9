"""What cloud-init makes of EC2's metadata: `python3 cloud_init_ec2.py PACKAGES PLATFORM INTERFACE`, where a guest is.

Runs cloud-init's own DataSourceEc2, unchanged. PLATFORM (`aws`, `unknown`) is what it takes the machine for, which it else reads
from its firmware: on `aws` it asks with session tokens alone (IMDSv2), on others without. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile


def main(packages: str, platform: str, interface: str) -> None:
    sys.path.insert(0, packages)
    from cloudinit import helpers, url_helper
    from cloudinit.distros import debian
    from cloudinit.sources import DataSourceEc2

    asked: list[tuple[str, bool]] = []
    real = url_helper.readurl

    def readurl(url: str, *given: object, **more: object) -> object:
        headers = more.get("headers_cb")(url) if callable(more.get("headers_cb")) else more.get("headers") or {}
        asked.append((url.removeprefix("http://169.254.169.254"), "X-aws-ec2-metadata-token" in headers))
        return real(url, *given, **more)

    url_helper.readurl = readurl
    DataSourceEc2.identify_platform = lambda: platform
    with tempfile.TemporaryDirectory() as directory:
        paths = helpers.Paths({"cloud_dir": directory, "run_dir": directory})
        config = {"datasource": {"Ec2": {"strict_id": False, "max_wait": 30, "timeout": 5}}}
        distro = debian.Distro("debian", {}, paths)
        distro.fallback_interface = interface
        source = DataSourceEc2.DataSourceEc2(config, distro, paths)
        found = source.get_data()
        said = {"found": found, "asked": asked, "token": source._api_token is not None}
        if found:
            said |= {
                "instance": source.get_instance_id(),
                "hostname": str(source.get_hostname().hostname),
                "keys": source.get_public_ssh_keys(),
                "userData": (source.get_userdata_raw() or b"").decode(),
                "network": source.network_config,
            }
        print(json.dumps(said, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
