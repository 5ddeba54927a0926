"""Waits until every URL on its command line answers 200, then ends; control_plane.py runs it where the servers are, which may be
another network namespace. Needs nothing but Python: `ready.py CA CERTIFICATE KEY SECONDS URL...`.
"""

import ssl
import sys
import time
import urllib.error
import urllib.request


def main(authority: str, certificate: str, key: str, seconds: str, *urls: str) -> int:
    trust = ssl.create_default_context(cafile=authority)
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE  # The schedulers' own certificates are nobody's; nothing secret is asked or told.
    trust.load_cert_chain(certificate, key)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    end = time.monotonic() + float(seconds)
    waiting = list(urls)
    while waiting:
        answer = "none"
        try:
            with opener.open(waiting[0], timeout=5) as response:
                answer = str(response.status)
        except urllib.error.HTTPError as error:
            answer = f"{error.code} {error.read(2000).decode(errors='replace')}"
            error.close()
        except OSError as error:
            answer = str(error)
        if answer == "200":
            waiting.pop(0)
        elif time.monotonic() > end:
            print(f"{waiting[0]} did not answer 200 in {seconds} s; its last answer: {answer}")
            return 1
        else:
            time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
