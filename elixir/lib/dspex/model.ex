defmodule DSPex.Model do
  @moduledoc """
  The behaviour of a language model of the application: programs of the worker run on it, and its key
  never leaves the BEAM.

      defmodule MyApp.Model do
        @behaviour DSPex.Model

        @impl true
        def complete(%{"messages" => messages, "settings" => settings}) do
          {:ok, MyApp.Provider.chat(messages, temperature: settings["temperature"])}
        end
      end

  It is given to a bridge or a pool under a name, `models: %{"mine" => MyApp.Model}`, and configured as
  `"host/mine"`:

      Bridge.call(:configure_lm, %{model: "host/mine"})

  A function of one argument, or of the two of `c:stream/2`, can be given in place of a module.

  A request has these keys:

    * `"messages"` - a list of `%{"role" => role, "content" => content}`; the content is a text, or a list
      of parts
    * `"settings"` - the model's settings, such as `"temperature"` and `"max_tokens"`
    * `"stream"` - whether pieces of the reply are wanted
    * `"tools"`, `"response_format"` - if the program needs them
    * `"session_id"`

  A reply is the text, or a map with `:text` and, if known, `:usage` (`:input_tokens`,
  `:output_tokens`), `:finish_reason` and `:tool_calls`. An exception and `{:error, reason}` fail the
  request; a `DSPex.PythonBridge.Error` keeps its code and its details.
  """

  @type request :: %{required(String.t()) => term()}
  @type reply :: String.t() | map() | {:ok, String.t() | map()} | {:error, term()}

  @doc "Returns the reply to a request."
  @callback complete(request()) :: reply()

  @doc """
  Returns the reply to a request, and passes its pieces to `emit` as they come. Called for requests with
  `"stream" => true`.

  `emit` ends the process once the program's call has ended, so that a reply that nobody needs ends too.
  """
  @callback stream(request(), emit :: (String.t() -> :ok)) :: reply()

  @optional_callbacks stream: 2
end
