"""An ACME authority of acme2certifier's, run by its own Python: acme_server.py PORT PORT_OF_THE_GATEWAY.

`ACME_SRV_CONFIGFILE` names its configuration. What the network would do is done here: every name has the address
127.0.0.1, and port 80 is the gateway's.
"""

import runpy
import sys
from pathlib import Path
from wsgiref.simple_server import make_server

import acme2certifier
import acme2certifier.acme_srv.helper as helper
import requests

port, gateway_port = map(int, sys.argv[1:])
fetch = requests.get

helper.fqdn_resolve = lambda *_arguments, **_more: (["127.0.0.1"], False, None)
requests.get = lambda url, **more: fetch(url.replace("http://127.0.0.1/", f"http://127.0.0.1:{gateway_port}/"), **more)

application = runpy.run_path(str(Path(acme2certifier.__file__).parent / "share/acme2certifier_wsgi.py"))["application"]
make_server("127.0.0.1", port, application).serve_forever()
