-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Active health checks: one worker asks every engine, all workers read the verdict from the shared dict.

local M = {}
M.__index = M

local find = string.find

-- new{dict, ask, way}: dict is shared by the workers; ask(peer, conf) -> true | false, reason does one check (see M.http).
-- way: how engines are asked, as a word. What was found in another way, or at another address, says nothing of this one: while
-- nginx changes to TLS, its old workers still ask without it.
function M.new(options)
    return setmetatable({ dict = options.dict, ask = options.ask, way = options.way or "", keys = {} }, M)
end

-- From now on these are the peers: a list of {name, dial, port}. Forgets those that are no longer there.
function M:use(peers)
    local keys = {}
    for i = 1, #peers do
        local peer = peers[i]
        keys[peer.name] = self.way .. peer.dial .. ":" .. peer.port .. "/" .. peer.name
    end
    for name, key in pairs(self.keys) do
        if keys[name] ~= key then
            self.dict:delete("h:" .. key)
            self.dict:delete("hn:" .. key)
        end
    end
    self.keys = keys
end

-- What the last check of a sick peer said, or nil. A request that is still under way may ask about a peer that is gone.
function M:reason(name)
    local key = self.keys[name]
    return key and self.dict:get("h:" .. key)
end

-- Is the peer well, as far as its checks say? One that was never checked is.
function M:well(name)
    return self:reason(name) == nil
end

-- Take one result into account: conf.fall failures on end make a peer sick, conf.rise successes make it well again.
-- Only the worker that checks calls it. Returns true when the verdict changed.
function M:result(name, ok, reason, conf)
    local dict, key = self.dict, self.keys[name]
    local count, well = "hn:" .. key, self:well(name)
    if ok == well then
        dict:delete(count)
        return false
    end
    local seen = dict:incr(count, 1, 0)
    if not seen or seen < (well and conf.fall or conf.rise) then
        return false
    end
    dict:delete(count)
    if well then
        dict:set("h:" .. key, reason or "failed")
    else
        dict:delete("h:" .. key)
    end
    return true
end

-- Check the peers that are due. Each peer is latched for its interval, so any number of workers may call this.
-- peers: list of peers; conf: policy.health; spawn(function) runs a check beside the others; changed(peer, well, reason).
function M:tick(peers, conf, spawn, changed)
    for i = 1, #peers do
        local peer = peers[i]
        local key = self.keys[peer.name]
        if peer.state ~= "down" and self.dict:add("hl:" .. key, 1, conf.interval_s) then
            spawn(function()
                local ok, reason = self.ask(peer, conf)
                -- It may be gone, or be elsewhere, by now.
                if self.keys[peer.name] == key and self:result(peer.name, ok, reason, conf) and changed then
                    changed(peer, ok, reason)
                end
            end)
        end
    end
end

-- A check over HTTP: any 2xx is well. tls(socket, peer) does the handshake when the engines speak TLS.
function M.http(tls)
    return function(peer, conf)
        local socket = ngx.socket.tcp()
        socket:settimeouts(conf.timeout_ms, conf.timeout_ms, conf.timeout_ms)
        local ok, err = socket:connect(peer.dial, peer.port)
        if ok and tls then
            ok, err = tls(socket, peer)
        end
        if not ok then
            socket:close()
            return false, err or "no connection"
        end
        ok, err = socket:send(
            "GET " .. conf.path .. " HTTP/1.1\r\nHost: " .. peer.name
                .. "\r\nUser-Agent: gpufleet-gateway\r\nConnection: close\r\n\r\n"
        )
        local line
        if ok then
            line, err = socket:receive("*l")
        end
        socket:close()
        if not line then
            return false, err or "no answer"
        end
        if find(line, "^HTTP/1%.[01] 2%d%d") then
            return true
        end
        return false, line
    end
end

return M
