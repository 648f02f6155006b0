#!/usr/bin/env python3
from distill.espnet3.system import run

if __name__ == "__main__":
    run()
