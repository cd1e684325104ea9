-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Checks the gateway's configuration the way its workers do. Needs LuaJIT or Lua 5.1, and lua-cjson.

local USAGE = [[
usage: gwcheck policy FILE
       gwcheck peers FILE
       gwcheck both POLICY PEERS
       gwcheck --describe

Exit status: 0 good, 1 bad (one sentence per line on standard error), 2 wrong usage or a file that cannot be read.
The modules are in $GW_LUA_PATH when that is set, otherwise in lua/ beside this program, or beside it.
]]

local function fail(status, ...)
    io.stderr:write(...)
    os.exit(status)
end

local function readable(path)
    local file = io.open(path, "r")
    return file and file:close()
end

local function find_modules()
    local folder = arg[0]:match("^(.*)/[^/]*$") or "."
    local told = os.getenv("GW_LUA_PATH")
    for _, place in ipairs(told and { told } or { folder .. "/lua", folder }) do
        if readable(place .. "/gw/conf.lua") then
            return place
        end
    end
    return fail(2, "gwcheck: cannot find gw/conf.lua in ", told or folder, "\n")
end

local unreadable = false

-- The whole file, or nil and why. Directories open but cannot be read.
local function read(path)
    local file, reason = io.open(path, "r")
    local text
    if file then
        text, reason = file:read("*a")
        file:close()
    end
    unreadable = unreadable or not text
    return text, reason
end

local mode = arg[1]
local wanted = ({ policy = 2, peers = 2, both = 3, ["--describe"] = 1, ["--help"] = 1 })[mode or ""]
if not wanted or #arg ~= wanted then
    fail(2, USAGE)
elseif mode == "--help" then
    io.write(USAGE)
    os.exit(0)
end

package.path = find_modules() .. "/?.lua;" .. package.path
local conf = require("gw.conf")
if mode == "--describe" then
    io.write(conf.describe())
    os.exit(0)
end

local there, json = pcall(require, "cjson.safe")
if not there then
    fail(2, "gwcheck: lua-cjson is not installed\n")
end
local policy_path = mode ~= "peers" and arg[2] or nil
local peers_path = mode == "peers" and arg[2] or arg[3]
local _, _, sentences = conf.read(read, json.decode, policy_path, peers_path)
for _, sentence in ipairs(sentences) do
    local path = sentence:find("^peers") and peers_path or policy_path
    io.stderr:write(path, ": ", sentence, "\n")
end
os.exit(unreadable and 2 or #sentences > 0 and 1 or 0)
