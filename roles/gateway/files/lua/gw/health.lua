-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Active health checks: one worker asks every engine, all workers read the verdict from the shared dict.

local M = {}
M.__index = M

local find = string.find

-- new{dict, ask}: dict is shared by the workers; ask(peer, conf) -> true | false, reason does one check (see M.http).
function M.new(options)
    return setmetatable({ dict = options.dict, ask = options.ask }, M)
end

-- Is the peer well, as far as its checks say? One that was never checked is.
function M:well(name)
    return self.dict:get("h:" .. name) == nil
end

-- Take one result into account: conf.fall failures on end make a peer sick, conf.rise successes make it well again.
-- Only the worker that checks calls it. Returns true when the verdict changed.
function M:result(name, ok, reason, conf)
    local dict, count = self.dict, "hn:" .. name
    local well = self:well(name)
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
        dict:set("h:" .. name, reason or "failed")
    else
        dict:delete("h:" .. name)
    end
    return true
end

-- What the last check of a sick peer said, or nil.
function M:reason(name)
    return self.dict:get("h:" .. name)
end

-- Check the peers that are due. Each peer is latched for its interval, so any number of workers may call this.
-- peers: list of peers; conf: policy.health; spawn(function) runs a check beside the others; changed(peer, well, reason).
function M:tick(peers, conf, spawn, changed)
    for i = 1, #peers do
        local peer = peers[i]
        if peer.state ~= "down" and self.dict:add("hl:" .. peer.name, 1, conf.interval_s) then
            spawn(function()
                local ok, reason = self.ask(peer, conf)
                if self:result(peer.name, ok, reason, conf) and changed then
                    changed(peer, ok, reason)
                end
            end)
        end
    end
end

-- Forget peers that are no longer there.
function M:forget(name)
    self.dict:delete("h:" .. name)
    self.dict:delete("hn:" .. name)
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
