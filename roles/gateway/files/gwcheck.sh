#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks the gateway's limits and engines as its workers do; without words it says how it is called.
exec lua5.1 /usr/local/lib/gpufleet/gateway/gwcheck.lua "$@"
