"""The metadata server of a TPU VM: whether there is one, and what it says."""

import os
import urllib.error
import urllib.request

from jax._src import cloud_tpu_init

# The same on every machine of Google Cloud; by name a machine without DNS would wait.
ADDRESS = "169.254.169.254"
# A server on the machine itself: it answers in milliseconds or not at all.
TIMEOUT_SECONDS = 0.4


def attribute(key: str) -> str | None:
    """The instance's attribute `key`; None where there is none, no server, or no TPU VM.

    As for jax, `GCE_METADATA_IP` is another address of the server, and `TPU_SKIP_MDS_QUERY` means
    that it must not be asked; but jax itself sets that where it finds no TPU, so that it counts
    on a TPU VM only.
    """
    address = os.environ.get("GCE_METADATA_IP")
    if not address:
        if not cloud_tpu_init.running_in_cloud_tpu_vm or "TPU_SKIP_MDS_QUERY" in os.environ:
            return None
        address = ADDRESS
    request = urllib.request.Request(
        f"http://{address}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError, UnicodeDecodeError):
        return None
