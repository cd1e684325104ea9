-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Hand a message to an OpenTelemetry collector: OTLP over HTTP, as JSON. Called by a timer; a request never waits for it.

local M = {}

local match = string.match

-- Bytes of an answer that are read: more than any collector says.
local MOST_ANSWER = 65536

-- sender{host, port, path, timeout_ms}: host is an address, for nginx asks no name server here. Returns send(body), which
-- returns the status and the text of the answer, or nil and why there is none.
function M.sender(to)
    local head = "POST " .. to.path .. " HTTP/1.1\r\nHost: " .. to.host .. ":" .. to.port
        .. "\r\nUser-Agent: gpufleet-gateway\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
    return function(body)
        local socket = ngx.socket.tcp()
        socket:settimeouts(to.timeout_ms, to.timeout_ms, to.timeout_ms)
        local ok, err = socket:connect(to.host, to.port)
        if ok then
            ok, err = socket:send({ head, #body, "\r\n\r\n", body })
        end
        local text
        if ok then
            -- The collector closes the connection at the end of its answer.
            local all, why, part = socket:receive(MOST_ANSWER)
            text, err = all or (why == "closed" and part), why
        end
        socket:close()
        local status = text and match(text, "^HTTP/1%.[01] (%d%d%d)")
        if not status then
            return nil, err or "no answer"
        end
        return tonumber(status), match(text, "\r\n\r\n(.*)$")
    end
end

return M
