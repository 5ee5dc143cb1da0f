"""A program: keeps a folder and writes to it until it is killed. `python writing.py FOLDER STEPS`."""

import sys
from pathlib import Path

from served import Scribe, a_spec, served

if __name__ == "__main__":
    with served(Path(sys.argv[1])) as client:
        if "t" not in client.list_tables():
            client.create_table("t", a_spec(int(sys.argv[2])))
        scribe = Scribe(client)
        scribe.write(20)
        print("writes", flush=True)
        while True:
            scribe.write(1, leave=0.02)
