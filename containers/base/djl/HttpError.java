/** An answer that is an error of the server's, not of the handler's; type as upstream's class name. */
final class HttpError extends Exception {
    private static final long serialVersionUID = 1L;
    final int code;
    final String type;

    HttpError(int code, String type, String message) {
        super(message);
        this.code = code;
        this.type = type;
    }

    static HttpError unknown() {
        return new HttpError(
                404, "ResourceNotFoundException", "Requested resource is not found, please refer to API document.");
    }

    static HttpError of(int code, Throwable t) {
        Throwable root = t;
        while (root.getCause() != null) {
            root = root.getCause();
        }
        return new HttpError(code, t.getClass().getSimpleName(), root.getMessage());
    }
}
