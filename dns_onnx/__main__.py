"""`python -m dns_onnx`, the same as the command `dns-onnx`."""

from dns_onnx.cli.app import main

main()
