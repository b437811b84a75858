-- Prints the proxy's URL as soon as HAProxy works, which it does not say by itself.
core.register_task(function()
    print(os.getenv("SCHEME") .. "://127.0.0.1:" .. os.getenv("PORT") .. "/")
    io.stdout:flush()
end)
