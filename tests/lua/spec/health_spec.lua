-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local fake_dict = require("fake_dict")
local health = require("gw.health")

local CONF = { interval_s = 5, fall = 3, rise = 2 }

describe("health", function()
    local now, dict, answers, checked, changes, peers

    before_each(function()
        now = 1000
        dict = fake_dict.new({ now = function()
            return now
        end })
        answers, checked, changes = {}, {}, {}
        peers = {
            { name = "a", dial = "192.0.2.1", port = 8000, state = "up" },
            { name = "b", dial = "192.0.2.2", port = 8000, state = "drain" },
            { name = "c", dial = "[2001:db8::3]", port = 8000, state = "down" },
        }
    end)

    local function worker(way)
        local w = health.new({
            dict = dict,
            way = way,
            ask = function(peer)
                checked[#checked + 1] = peer.name
                local answer = answers[peer.name]
                return answer == nil, answer
            end,
        })
        w:use(peers)
        return w
    end

    local function run(check)
        check()
    end

    local function changed(peer, well, reason)
        changes[#changes + 1] = peer.name .. (well and " well" or " sick: " .. reason)
    end

    local function ticks(w, number)
        for _ = 1, number do
            now = now + CONF.interval_s
            w:tick(peers, CONF, run, changed)
        end
    end

    -- Engine a closes its connections for so many checks.
    local function closed(w, number)
        answers.a = "closed"
        ticks(w, number)
        answers.a = nil
    end

    it("takes a peer that was never checked for well", function()
        assert.is_true(worker():well("a"))
        assert.is_nil(worker():reason("a"))
    end)

    it("asks each peer once in an interval, whoever asks, and none that is down", function()
        local one, two = worker(), worker()
        one:tick(peers, CONF, run, changed)
        two:tick(peers, CONF, run, changed)
        assert.same({ "a", "b" }, checked)
        now = now + 4.9
        two:tick(peers, CONF, run, changed)
        assert.same({ "a", "b" }, checked)
        now = now + 0.2
        two:tick(peers, CONF, run, changed)
        assert.same({ "a", "b", "a", "b" }, checked)
    end)

    it("finds a peer sick after failures in a row, well after successes in a row, and tells both workers", function()
        local one, two = worker(), worker()
        answers.a = "HTTP/1.1 500"
        ticks(one, 2)
        answers.a = nil
        ticks(one, 1)
        answers.a = "timeout"
        ticks(one, 2)
        assert.is_true(two:well("a"))
        ticks(two, 1)
        assert.is_false(one:well("a"))
        assert.equal("timeout", one:reason("a"))
        assert.is_true(one:well("b"))
        answers.a = nil
        ticks(one, 1)
        closed(one, 1)
        ticks(one, 1)
        assert.is_false(two:well("a"))
        ticks(one, 1)
        assert.is_true(two:well("a"))
        assert.same({ "a sick: timeout", "a well" }, changes)
    end)

    it("does not believe what was found in another way, and checks at once", function()
        local plain = worker()
        closed(plain, 3)
        assert.is_false(plain:well("a"))
        local tls = worker("/etc/client.pem")
        assert.is_true(tls:well("a"))
        checked = {}
        tls:tick(peers, CONF, run, changed)
        assert.same({ "a", "b" }, checked)
        assert.is_false(plain:well("a"))
    end)

    it("forgets a peer that is gone or has another address", function()
        local w = worker()
        closed(w, 3)
        local old = peers[1]
        peers[1] = { name = "a", dial = "192.0.2.1", port = 8001, state = "up" }
        w:use(peers)
        assert.is_true(w:well("a"))
        peers[1] = old
        w:use(peers)
        assert.is_true(w:well("a"))
        w:use({ peers[2] })
        -- A request that is still under way may ask.
        assert.is_true(w:well("a"))
    end)

    it("throws away the result of a check of a peer that went meanwhile", function()
        local w = worker()
        answers.a = "closed"
        ticks(w, 2)
        local under_way = {}
        now = now + CONF.interval_s
        w:tick(peers, CONF, function(check)
            under_way[#under_way + 1] = check
        end, changed)
        peers[1] = { name = "a", dial = "192.0.2.9", port = 8000, state = "up" }
        w:use(peers)
        for _, check in ipairs(under_way) do
            check()
        end
        answers.a = nil
        assert.is_true(w:well("a"))
        closed(w, 2)
        assert.is_true(w:well("a"))
        closed(w, 1)
        assert.is_false(w:well("a"))
        w:use({ peers[2] })
        assert.same({ "a sick: closed" }, changes)
    end)
end)
