defmodule DSPex.PythonBridge.Exits do
  @moduledoc """
  Describes what ended code of the application, a tool or a setup, without its arguments: those of a
  call that failed may hold secrets, and go into logs and errors.
  """

  alias DSPex.PythonBridge.Text

  @doc "Describes it in one line."
  @spec line(:error | :exit | :throw, term(), Exception.stacktrace()) :: String.t()
  def line(:error, reason, stacktrace) do
    :error |> Exception.normalize(reason, stacktrace) |> message() |> Text.line()
  end

  def line(:exit, reason, _stacktrace), do: Text.line("exit: #{safe(reason)}")
  def line(:throw, value, _stacktrace), do: Text.line("throw: #{safe(value)}")

  @doc "Returns the stacktrace with arities in place of arguments."
  @spec without_arguments(Exception.stacktrace()) :: Exception.stacktrace()
  def without_arguments(stacktrace) do
    for entry <- stacktrace do
      case entry do
        {module, function, arguments, location} when is_list(arguments) ->
          {module, function, length(arguments), location}

        {function, arguments, location} when is_list(arguments) ->
          {function, length(arguments), location}

        entry ->
          entry
      end
    end
  end

  # Its own message shows the whole map.
  defp message(%KeyError{key: key}), do: "key #{inspect(key)} not found"

  # `message/1` of an exception, and `inspect` of a struct, are code of the application too.
  defp message(exception) do
    Exception.message(exception)
  catch
    _kind, _reason -> inspect(exception.__struct__)
  end

  defp safe(term) do
    inspect(term, limit: 10, printable_limit: 200)
  catch
    _kind, _reason -> "a term that cannot be shown"
  end
end
