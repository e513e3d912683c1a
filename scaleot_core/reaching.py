"""Whether a service answers over TLS, as the one it should be, and what its clock says."""

import http.client
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from scaleot_core.address import Address
from scaleot_core.bundle.tls_files import TlsFiles
from scaleot_core.errors import InputError

TIMEOUT_SECONDS = 10.0
MAX_SKEW_SECONDS = 30.0
"""Flower's nodes sign the time, and a signature counts for a minute."""


def reach(address: Address, tls: TlsFiles) -> str:
    """Says which TLS a service answers with; raises ``InputError`` if none does, or if it is another's."""
    context = ssl.create_default_context(cafile=tls.authority)
    context.load_cert_chain(tls.certificate, tls.private_key)
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secured,
        ):
            return f"{address} answers with {secured.version()}"
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"{address} shows a certificate that is not to be believed ({error.verify_message}): compare authority.pem "
            "and the host's name with the model owner's"
        ) from error
    except OSError as error:
        raise InputError(
            f"{address} cannot be reached ({error.strerror or error}): is it running, and does a firewall let it pass?"
        ) from error


def compare_clocks(address: Address, tls: TlsFiles) -> str:
    """Says how far this machine's clock is from that of an HTTPS service; raises ``InputError`` if it is too far."""
    context = ssl.create_default_context(cafile=tls.authority)
    connection = http.client.HTTPSConnection(address.host, address.port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        connection.request("GET", "/")
        said = connection.getresponse().headers["Date"]
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{address} does not say what time it is: {error}. See whether it can be reached") from error
    finally:
        connection.close()
    try:
        skew = (datetime.now(UTC) - parsedate_to_datetime(said)).total_seconds()
    except (TypeError, ValueError) as error:
        raise InputError(f"{address} says no time: is it the fleet address of this federation?") from error
    if abs(skew) > MAX_SKEW_SECONDS:
        raise InputError(f"the clock is {skew:+.0f} s from the server's, expected {MAX_SKEW_SECONDS:g}: set it (NTP)")
    return f"{abs(skew):.0f} s from the server's"
