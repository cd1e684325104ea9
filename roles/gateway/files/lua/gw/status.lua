-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- The status page for operators, as HTML and as JSON.
--
-- data is what the caller knows; whatever is nil is left out or shown as "-":
--   now, started_at   Unix seconds
--   node, version     texts
--   refresh_s         the page asks to be loaded again so often; nil: never
--   config            {id, loaded_at, error = why the files on disk are not in use, or nil}
--   workers           {running, expected}
--   warnings          list of sentences beside those that are found here
--   shed              {factor = 0.1..1 of the capacity in use, ttft_p90_ms, ttft_target_ms,
--                      waiting = {batch, standard, premium}, max_waiters = {batch, standard, premium}}
--   pools             list of {name, aliases = {...}, default, context_tokens, peers = list of
--                       {name, address, port, region, weight, state = "up|drain|down", well = bool (nil: not checked),
--                        reason = what the failed check said, breaker = "closed|open|half_open", breaker_until, trips,
--                        share = 0..1 of its weight (slow start), inflight, max_inflight, tokens, capacity_tokens,
--                        ttft_ms}}
--   tenants           list of {id, tier, priority, and for each of concurrency, rpm, tpm and tpd
--                       {used, limit} (0 is no limit)}
-- Both answers are made of M.view(data), so they cannot disagree.

local text_of = require("gw.text")

local M = {}

local clean, quote, MARK = text_of.clean, text_of.quote, text_of.MARK
local find, format, gsub, sub = string.find, string.format, string.gsub, string.sub
local floor, huge, max, min = math.floor, math.huge, math.max, math.min
local concat, sort = table.concat, table.sort

-- Rows of tenants on the page, the fullest first: a browser copes with no more than some hundreds.
M.MOST_TENANTS = 200

-- For the header Content-Security-Policy of the page: it needs its own styles and nothing else.
M.CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

local PRIORITIES = { "batch", "standard", "premium" }
local LIMITS = { "concurrency", "rpm", "tpm", "tpd" }

-- ---------------------------------------------------------------------------------------------------- texts

local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

-- escape(value) -> text that is safe between tags and in a quoted attribute.
function M.escape(value)
    local text = gsub(clean(tostring(value)), "[&<>\"']", ENTITIES)
    return (gsub(text, "[%z\1-\8\11\12\14-\31\127]", MARK))
end

local escape = M.escape

local function is_number(value)
    return type(value) == "number" and value == value and value < huge and value > -huge
end

-- 1234567 -> "1.23M": three digits that count.
local function short(value)
    if not is_number(value) then
        return "-"
    end
    local size, unit = math.abs(value), ""
    for _, step in ipairs({ "k", "M", "G", "T" }) do
        -- 999.5 would be written as 1000.
        if size < 999.5 then
            break
        end
        size, unit = size / 1000, step
    end
    local text
    if size < 9.995 and size ~= floor(size) then
        text = format("%.2f", size)
    elseif size < 99.95 and size ~= floor(size) then
        text = format("%.1f", size)
    else
        text = format("%.0f", size)
    end
    if find(text, ".", 1, true) then
        text = gsub(gsub(text, "0+$", ""), "%.$", "")
    end
    return (value < 0 and "-" or "") .. text .. unit
end

-- Seconds -> "3 d 4 h": the two largest units.
local function span(seconds)
    if not is_number(seconds) then
        return "-"
    end
    seconds = max(0, floor(seconds + 0.5))
    if seconds < 60 then
        return seconds .. " s"
    elseif seconds < 3600 then
        return format("%d min %d s", floor(seconds / 60), seconds % 60)
    elseif seconds < 86400 then
        return format("%d h %d min", floor(seconds / 3600), floor(seconds % 3600 / 60))
    end
    return format("%d d %d h", floor(seconds / 86400), floor(seconds % 86400 / 3600))
end

local function percent(share)
    return is_number(share) and format("%.0f %%", share * 100) or "-"
end

-- ---------------------------------------------------------------------------------------------------- the view

-- One word for an engine, the strongest first.
local function status_of(peer)
    if peer.state == "down" then
        return "down"
    elseif peer.well == false then
        return "sick"
    elseif peer.breaker == "open" then
        return "broken"
    elseif peer.state == "drain" then
        return "draining"
    elseif peer.breaker == "half_open" then
        return "on trial"
    elseif is_number(peer.share) and peer.share < 1 then
        return "warming up"
    end
    return "up"
end

-- What gets requests.
local USABLE = { up = true, ["on trial"] = true, ["warming up"] = true }

local function share(used, limit)
    if is_number(used) and is_number(limit) and limit > 0 then
        return used / limit
    end
    return nil
end

local function view_pool(pool, now, warn)
    local out = {
        name = pool.name,
        aliases = pool.aliases or {},
        default = pool.default == true,
        context_tokens = pool.context_tokens,
        peers = {},
        usable = 0,
        inflight = 0,
        tokens = 0,
        capacity_tokens = 0,
    }
    for i, peer in ipairs(pool.peers or {}) do
        local row = {}
        for key, value in pairs(peer) do
            row[key] = value
        end
        row.status = status_of(peer)
        out.peers[i] = row
        out.inflight = out.inflight + (peer.inflight or 0)
        if USABLE[row.status] then
            out.usable = out.usable + 1
            out.tokens = out.tokens + (peer.tokens or 0)
            out.capacity_tokens = out.capacity_tokens + (peer.capacity_tokens or 0)
        end
        if row.status == "sick" then
            warn(2, "Engine %s of pool %s fails its checks: %s", peer.name, pool.name, peer.reason or "no reason known")
        elseif row.status == "broken" then
            local left = is_number(peer.breaker_until) and is_number(now) and peer.breaker_until - now
            warn(2, "Engine %s of pool %s gets no requests after failures%s", peer.name, pool.name,
                left and left > 0 and ", for another " .. span(left) or "")
        end
    end
    out.load = share(out.tokens, out.capacity_tokens)
    if out.usable == 0 then
        warn(3, "Pool %s has no engine that gets requests", pool.name)
    elseif out.load and out.load >= 0.9 then
        warn(2, "Pool %s is %s full", pool.name, percent(out.load))
    end
    return out
end

local function view_tenant(tenant)
    local out = { id = tenant.id, tier = tenant.tier, priority = tenant.priority, fullest = 0 }
    for _, name in ipairs(LIMITS) do
        local given = tenant[name]
        if given then
            local part = share(given.used, given.limit)
            out[name] = { used = given.used, limit = given.limit, share = part }
            out.fullest = max(out.fullest, part or 0)
        end
    end
    return out
end

-- view(data) -> what both answers show: data with
--   warnings  list of {level = 1 (note) | 2 (look at it) | 3 (requests fail), text}, the worst first
--   pools     each with usable (engines), inflight, tokens and capacity_tokens of the usable ones, load (0.. or nil);
--             their peers with status = "up|warming up|on trial|draining|broken|sick|down"
--   tenants   each limit with share (0.. or nil); fullest; the fullest tenant first, then by name
-- data is not changed.
function M.view(data)
    local config, workers, shed = data.config or {}, data.workers or {}, data.shed or {}
    local warnings = {}
    local function warn(level, text, ...)
        warnings[#warnings + 1] = { level = level, text = format(text, ...), order = #warnings }
    end
    if config.error then
        warn(3, "The configuration on disk is not in use: %s", config.error)
    end
    if is_number(workers.running) and is_number(workers.expected) and workers.running < workers.expected then
        warn(2, "%d of %d workers run", workers.running, workers.expected)
    end
    local pools, tenants = {}, {}
    for i, pool in ipairs(data.pools or {}) do
        pools[i] = view_pool(pool, data.now, warn)
    end
    if #pools == 0 then
        warn(3, "There is no pool")
    end
    if is_number(shed.factor) and shed.factor < 1 then
        warn(2, "The engines are held to %s of their capacity: the first token takes %s at the 90th percentile",
            percent(shed.factor), is_number(shed.ttft_p90_ms) and format("%.0f ms", shed.ttft_p90_ms) or "too long")
    end
    for _, text in ipairs(data.warnings or {}) do
        warn(1, "%s", text)
    end
    sort(warnings, function(a, b)
        if a.level ~= b.level then
            return a.level > b.level
        end
        return a.order < b.order
    end)
    for i = 1, #warnings do
        warnings[i].order = nil
    end
    for i, tenant in ipairs(data.tenants or {}) do
        tenants[i] = view_tenant(tenant)
    end
    sort(tenants, function(a, b)
        if a.fullest ~= b.fullest then
            return a.fullest > b.fullest
        end
        return tostring(a.id) < tostring(b.id)
    end)
    return {
        now = data.now,
        started_at = data.started_at,
        uptime_s = is_number(data.now) and is_number(data.started_at) and data.now - data.started_at or nil,
        node = data.node,
        version = data.version,
        config = { id = config.id, loaded_at = config.loaded_at, error = config.error },
        workers = { running = workers.running, expected = workers.expected },
        shed = {
            factor = shed.factor,
            ttft_p90_ms = shed.ttft_p90_ms,
            ttft_target_ms = shed.ttft_target_ms,
            waiting = shed.waiting or {},
            max_waiters = shed.max_waiters or {},
        },
        warnings = warnings,
        pools = pools,
        tenants = tenants,
    }
end

-- ---------------------------------------------------------------------------------------------------- JSON

-- Members that are lists even when they are empty.
local LISTS = { aliases = true, peers = true, pools = true, tenants = true, warnings = true }

local function encode(value, name, out)
    local kind = type(value)
    if kind == "table" then
        local list = LISTS[name]
        out[#out + 1] = list and "[" or "{"
        if list then
            for i = 1, #value do
                out[#out + 1] = i > 1 and "," or ""
                encode(value[i], nil, out)
            end
        else
            local keys = {}
            for key in pairs(value) do
                keys[#keys + 1] = key
            end
            sort(keys)
            for i = 1, #keys do
                out[#out + 1] = i > 1 and "," or ""
                encode(keys[i], nil, out)
                out[#out + 1] = ":"
                encode(value[keys[i]], keys[i], out)
            end
        end
        out[#out + 1] = list and "]" or "}"
    elseif kind == "string" then
        out[#out + 1] = quote(value)
    elseif is_number(value) then
        out[#out + 1] = value == floor(value) and math.abs(value) < 1e15 and format("%.0f", value)
            or format("%.14g", value)
    elseif kind == "boolean" then
        out[#out + 1] = tostring(value)
    else
        out[#out + 1] = "null"
    end
end

-- json(data) -> JSON of M.view(data); members in the order of the alphabet, all tenants.
function M.json(data)
    local out = {}
    encode(M.view(data), nil, out)
    out[#out + 1] = "\n"
    return concat(out)
end

-- ---------------------------------------------------------------------------------------------------- HTML

local STYLE = [[
:root{color-scheme:light dark;--fg:#1c2430;--dim:#5b6675;--bg:#f6f7f9;--card:#fff;--line:#dde1e7;--ok:#2b7a4b;--high:#a15c00;
--full:#b3261e;--okbar:#bfe3cd;--highbar:#fadba6;--fullbar:#f5bdb8;--track:#eceff3}
@media (prefers-color-scheme:dark){:root{--fg:#e4e8ee;--dim:#9aa5b4;--bg:#12161c;--card:#1a2029;--line:#2d3541;--ok:#6fcf97;
--high:#f2b45a;--full:#ff8a80;--okbar:#1f5a39;--highbar:#6b4710;--fullbar:#7d2a25;--track:#252c37}}
*{box-sizing:border-box}
body{margin:0;padding:1.25rem;background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif}
main{max-width:82rem;margin:0 auto}
h1{font-size:1.4rem;margin:0}
h2{font-size:1.1rem;margin:1.75rem 0 .5rem}
.dim{color:var(--dim);font-weight:400}
header p{margin:.25rem 0 0}
ul.warn{list-style:none;margin:1rem 0 0;padding:0}
ul.warn li{padding:.5rem .75rem;margin:.35rem 0;background:var(--card);border:1px solid var(--line);
border-left:.3rem solid var(--dim);border-radius:.3rem;overflow-wrap:anywhere}
ul.warn .l2{border-left-color:var(--high)}
ul.warn .l3{border-left-color:var(--full)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(12rem,1fr));gap:.6rem;margin:1rem 0 0}
dl div{background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:.55rem .75rem}
dt{color:var(--dim);font-size:.85rem}
dd{margin:0;font-size:1.15rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.wrap{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.4rem}
table{border-collapse:collapse;width:100%}
th,td{padding:.4rem .7rem;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}
thead th{color:var(--dim);font-size:.85rem;font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.s{font-weight:600}
.ok{color:var(--ok)}.high{color:var(--high)}.full{color:var(--full)}
.bar{position:relative;min-width:9rem;height:1.45rem;background:var(--track);border-radius:.25rem;overflow:hidden}
.bar i{position:absolute;inset:0 auto 0 0;background:var(--okbar)}
.bar.high i{background:var(--highbar)}.bar.full i{background:var(--fullbar)}
.bar span{position:relative;display:block;padding:0 .45rem;line-height:1.45rem;font-size:.85rem;color:var(--fg);
font-variant-numeric:tabular-nums}
]]

local STATUS_CLASS = {
    up = "ok", ["warming up"] = "ok", ["on trial"] = "high", draining = "high", broken = "full", sick = "full",
    down = "dim",
}

-- A used part of a whole as a bar with its numbers; only the numbers when there is no limit.
local function bar(used, limit)
    local part = share(used, limit)
    if not is_number(used) then
        return '<span class="dim">-</span>'
    elseif not part then
        return format('%s <span class="dim">no limit</span>', short(used))
    end
    local class = part >= 0.9 and " full" or part >= 0.75 and " high" or ""
    return format('<div class="bar%s"><i style="width:%.1f%%"></i><span>%s / %s</span></div>', class,
        min(100, max(0, part * 100)), short(used), short(limit))
end

local function card(out, name, value)
    out[#out + 1] = format("<div><dt>%s</dt><dd>%s</dd></div>\n", escape(name), value)
end

local function head(out, columns)
    out[#out + 1] = '<div class="wrap"><table>\n<thead><tr>'
    for _, column in ipairs(columns) do
        local numeric = sub(column, 1, 1) == "#"
        out[#out + 1] = format('<th scope="col"%s>%s</th>', numeric and ' class="n"' or "", (gsub(column, "^#", "")))
    end
    out[#out + 1] = "</tr></thead>\n<tbody>\n"
end

local function breaker_cell(peer, now)
    local state = peer.breaker
    if not state then
        return '<span class="dim">-</span>'
    end
    local text = escape((gsub(state, "_", "-")))
    if state == "open" and is_number(peer.breaker_until) and is_number(now) and peer.breaker_until > now then
        text = text .. " " .. span(peer.breaker_until - now)
    end
    if is_number(peer.trips) and peer.trips > 0 then
        text = text .. format(' <span class="dim">opened %d×</span>', peer.trips)
    end
    return text
end

local function peer_row(out, peer, now, timed)
    local status = peer.status
    if status == "warming up" then
        status = status .. " " .. percent(peer.share)
    end
    out[#out + 1] = format(
        '<tr><td>%s<br><span class="dim">%s:%s</span></td><td>%s</td><td class="s %s">%s</td><td>%s</td>'
            .. '<td class="n">%s</td><td>%s</td><td>%s</td>%s</tr>\n',
        escape(peer.name or "-"),
        escape(peer.address or "-"),
        escape(peer.port or "-"),
        escape(peer.region or "-"),
        STATUS_CLASS[peer.status],
        escape(status),
        breaker_cell(peer, now),
        short(peer.weight),
        bar(peer.inflight, peer.max_inflight),
        bar(peer.tokens, peer.capacity_tokens),
        timed and format('<td class="n">%s</td>', is_number(peer.ttft_ms) and format("%.0f ms", peer.ttft_ms) or "-") or ""
    )
end

local function pool_part(out, pool, now)
    local notes = {}
    if pool.default then
        notes[#notes + 1] = "default"
    end
    if #pool.aliases > 0 then
        local names = {}
        for i, alias in ipairs(pool.aliases) do
            names[i] = escape(alias)
        end
        notes[#notes + 1] = "also " .. concat(names, ", ")
    end
    notes[#notes + 1] = short(pool.context_tokens) .. " tokens of context"
    notes[#notes + 1] = format("%d of %d engines get requests", pool.usable, #pool.peers)
    if pool.load then
        notes[#notes + 1] = percent(pool.load) .. " full"
    end
    out[#out + 1] = format('<h2>%s <span class="dim">%s</span></h2>\n', escape(pool.name or "-"), concat(notes, " · "))
    local timed = false
    for _, peer in ipairs(pool.peers) do
        timed = timed or is_number(peer.ttft_ms)
    end
    local columns = { "Engine", "Region", "Status", "Breaker", "#Weight", "Requests", "Tokens in flight" }
    if timed then
        columns[#columns + 1] = "#First token"
    end
    head(out, columns)
    for _, peer in ipairs(pool.peers) do
        peer_row(out, peer, now, timed)
    end
    out[#out + 1] = "</tbody></table></div>\n"
end

local function tenants_part(out, tenants)
    if #tenants == 0 then
        return
    end
    local rows = min(#tenants, M.MOST_TENANTS)
    out[#out + 1] = format('<h2>Tenants <span class="dim">%s</span></h2>\n',
        rows < #tenants and format("the fullest %d of %d", rows, #tenants) or #tenants)
    head(out, { "Tenant", "Tier", "Priority", "Requests at once", "Requests per minute", "Tokens per minute",
        "Tokens per day" })
    for i = 1, rows do
        local tenant = tenants[i]
        out[#out + 1] = format("<tr><td>%s</td><td>%s</td><td>%s</td>", escape(tenant.id or "-"),
            escape(tenant.tier or "-"), escape(tenant.priority or "-"))
        for _, name in ipairs(LIMITS) do
            local limit = tenant[name] or {}
            out[#out + 1] = "<td>" .. bar(limit.used, limit.limit) .. "</td>"
        end
        out[#out + 1] = "</tr>\n"
    end
    out[#out + 1] = "</tbody></table></div>\n"
end

-- page(data) -> HTML. Complete in itself: no script, no font, no image; send it with M.CSP.
function M.page(data)
    local view = M.view(data)
    local out = { '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n' }
    if is_number(data.refresh_s) and data.refresh_s >= 1 then
        out[#out + 1] = format('<meta http-equiv="refresh" content="%d">\n', data.refresh_s)
    end
    local title = "Gateway " .. escape(view.node or "")
    out[#out + 1] = '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>' .. title
        .. "</title>\n<style>\n" .. STYLE .. "</style>\n</head>\n<body>\n<main>\n"
    out[#out + 1] = format("<header><h1>%s</h1>\n", title)
    if is_number(view.now) then
        out[#out + 1] = format('<p class="dim">As of %s UTC</p>', os.date("!%Y-%m-%d %H:%M:%S", floor(view.now)))
    end
    out[#out + 1] = "</header>\n"
    if #view.warnings > 0 then
        out[#out + 1] = '<ul class="warn">\n'
        for _, warning in ipairs(view.warnings) do
            out[#out + 1] = format('<li class="l%d">%s</li>\n', warning.level, escape(warning.text))
        end
        out[#out + 1] = "</ul>\n"
    end

    local inflight, tokens, capacity, usable, all = 0, 0, 0, 0, 0
    local seen = {}
    for _, pool in ipairs(view.pools) do
        for _, peer in ipairs(pool.peers) do
            -- An engine may stand in several pools.
            local name = peer.name or peer
            if not seen[name] then
                seen[name] = true
                all = all + 1
                inflight = inflight + (peer.inflight or 0)
                if USABLE[peer.status] then
                    usable = usable + 1
                    tokens, capacity = tokens + (peer.tokens or 0), capacity + (peer.capacity_tokens or 0)
                end
            end
        end
    end
    out[#out + 1] = "<dl>\n"
    card(out, "Requests in flight", short(inflight))
    card(out, "Tokens in flight", format("%s of %s", short(tokens), short(capacity)))
    card(out, "Engines that get requests", format("%d of %d", usable, all))
    local waiting = {}
    for i, name in ipairs(PRIORITIES) do
        waiting[i] = format("%s %s", short(view.shed.waiting[name] or 0), name)
    end
    card(out, "Waiting", concat(waiting, ", "))
    if is_number(view.shed.ttft_p90_ms) then
        local target = view.shed.ttft_target_ms
        card(out, "First token, 90th percentile", format("%.0f ms%s", view.shed.ttft_p90_ms,
            is_number(target) and target > 0 and format(", aim %.0f ms", target) or ""))
    end
    card(out, "Workers", short(view.workers.running))
    card(out, "Up for", span(view.uptime_s))
    card(out, "Configuration", escape(view.config.id or "-")
        .. (is_number(view.config.loaded_at) and is_number(view.now)
            and format(' <span class="dim">for %s</span>', span(view.now - view.config.loaded_at)) or ""))
    if view.version then
        card(out, "Version", escape(view.version))
    end
    out[#out + 1] = "</dl>\n"
    for _, pool in ipairs(view.pools) do
        pool_part(out, pool, view.now)
    end
    tenants_part(out, view.tenants)
    out[#out + 1] = "</main>\n</body>\n</html>\n"
    return concat(out)
end

-- For specs: how numbers and times are written.
M.short, M.span = short, span

return M
