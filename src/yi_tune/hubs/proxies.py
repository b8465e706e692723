"""The proxies that the environment names on the way to a hub, which both hubs' clients have to understand."""

import os
import re
from gettext import gettext as _
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from yi_tune.errors import YiTuneError

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def check_proxies() -> None:
    """Give the environment's proxies a spelling that both hubs' clients read. Raises YiTuneError, which names the
    variable, for one that they cannot use.
    """
    import httpx

    for name in sorted(name for name, value in os.environ.items() if value):
        if name.lower() == "no_proxy":  # httpx reads addresses of IPv6 there, but none in brackets
            os.environ[name] = re.sub(r"(?<![^,\s])\[([\da-fA-F:.]+)\](?![^,\s])", r"\1", os.environ[name])
        if name.lower() not in _PROXIES:
            continue
        # What GNOME's settings write for SOCKS, of which they know version 5.
        proxy = os.environ[name] = re.sub(r"^\s*socks://", "socks5://", os.environ[name])
        try:
            # Nothing is asked by this client, so there is nothing to verify.
            httpx.Client(proxy=proxy if "://" in proxy else f"http://{proxy}", verify=False).close()  # noqa: S501
        except Exception as error:  # of its own for an address, ValueError for a scheme, ImportError for SOCKS
            raise YiTuneError(
                # Without the name and the password that may stand before it.
                "{name} names a proxy that cannot be used, {proxy}: {error}",
                "Write it as http://HOST:PORT or socks5://HOST:PORT, or do without: unset {name}",
                name=name,
                proxy=proxy.rpartition("@")[2],
                error=error,
            ) from None
    try:
        httpx.Client(verify=False).close()  # noqa: S501
    except httpx.InvalidURL as error:  # the proxies are right, so it is what goes without them
        hint = _("Write host names and addresses there, with commas between them.")
        raise YiTuneError(_("NO_PROXY or no_proxy cannot be read: {error}").format(error=error), hint) from None


def proxy_to(address: str) -> str:
    """The variable that names the proxy through which `address` is asked; "" where it is asked without one."""
    parts = urlsplit(address)
    names = (name for scheme in (parts.scheme, "all") for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()))
    found = [name for name in names if os.environ.get(name)]
    return found[0] if found and not proxy_bypass(parts.netloc) else ""
